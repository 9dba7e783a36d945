"""Raw images in any of the usual forms."""
