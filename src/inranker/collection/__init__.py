"""Reading documents, queries and judgements from the forms in which people have them."""

from inranker.collection.collection import Collection, read_collection
from inranker.collection.documents import Documents
from inranker.collection.files import read_documents, read_queries, write_documents, write_queries

__all__ = [
    "Collection",
    "Documents",
    "read_collection",
    "read_documents",
    "read_queries",
    "write_documents",
    "write_queries",
]
