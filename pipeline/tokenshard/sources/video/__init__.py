"""Video files -> clips of RGB frames with their time stamps."""
