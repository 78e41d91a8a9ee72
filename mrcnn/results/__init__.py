"""Results out: `Result`, files for other programs, outlines, drawing and the HTML report."""
