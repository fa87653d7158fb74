"""HTTP service: many adapters of one base model, answered in mixed batches."""
