"""One page of HTML that tells a run, or several side by side: everything is in the file, and nothing is fetched."""
