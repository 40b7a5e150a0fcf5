"""The live lab: a Transformer that trains in the page, in C compiled to WebAssembly."""
