"""The Hugging Face Hub's protocol over the registry: repositories are adapters, commits are versions."""
