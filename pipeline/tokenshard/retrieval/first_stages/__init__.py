"""What finds candidates without looking at all pages: inverted lists, sign bits, a graph of mean vectors."""
