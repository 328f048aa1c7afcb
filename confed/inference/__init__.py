"""Confidential inference: requests sealed to an attested TEE, answers sealed back; nobody in between reads a word."""
