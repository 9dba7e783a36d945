"""Documents: PDF files and page images, one input a page, and the lines of text corpora."""
