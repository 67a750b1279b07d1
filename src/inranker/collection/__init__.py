"""Reading documents, queries and judgements from the forms in which people have them."""
