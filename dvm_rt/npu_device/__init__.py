"""The device process: `device` runs one native loop over the rings of the client and the encoder workers."""
