"""What tests need: fakes that keep the contracts, and the contracts as suites for adapters of your own."""
