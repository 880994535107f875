"""Training language models: the indexed data, the network under FSDP2, MLPerf's reference points."""
