"""Names and layouts of the tensors of other libraries."""
