"""The bench: trained models that a reader takes apart in the page, in the lab's WebAssembly."""
