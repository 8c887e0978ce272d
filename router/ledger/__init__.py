"""The books: usage rows, receipts, and what recent attempts say of each candidate. All views of summaries. Pure."""
