"""The input pipeline on the host: decode, resize, crop, batch, read ahead."""
