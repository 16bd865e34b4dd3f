"""The API process and the engine process, and the unix sockets between them."""
