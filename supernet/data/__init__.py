"""Data: readers that give an :class:`~supernet.data.images.ImageData`, and the loader that makes batches of it."""
