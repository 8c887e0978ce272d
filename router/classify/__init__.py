"""What size of model a request should get. Pure; its verdict reaches `router.policy` as a value."""
