"""Grids: rasters of depths, heights and other fields, with all that says where and what they are."""
