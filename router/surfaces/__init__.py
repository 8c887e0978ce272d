"""What a client may call: each surface reads its dialect into a request and renders its errors. Pure."""
