"""WHO may open it: evidence about a TEE, whether it is genuine (verifier) and whether it is acceptable (appraisal)."""
