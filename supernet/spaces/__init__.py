"""Search spaces: descriptions of what can be chosen, and the networks they turn into."""
