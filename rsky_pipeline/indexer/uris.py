"""Parts of at:// uris that this package made itself."""


def collection_of(uri: str) -> str:
    """Return the collection of a record."""
    return uri.split("/", 4)[3]
