"""The command line: options in, one call into a package, one rendering out."""
