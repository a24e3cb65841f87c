"""What a node holds: manifests, trust, the store of models, and how they are fetched."""
