"""The extraction loop: decode, encode, write, shard by shard."""
