"""What a clip goes through on its way into a data set: one idea a file, driven by `runner`."""
