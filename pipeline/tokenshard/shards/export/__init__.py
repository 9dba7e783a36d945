"""Token datasets written as other programs keep token ids. One file a format."""
