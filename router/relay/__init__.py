"""The data plane, the only one: from admission to receipt, one upstream attempt after another."""
