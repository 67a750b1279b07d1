"""First-stage retrieval and the sampling of negatives."""
