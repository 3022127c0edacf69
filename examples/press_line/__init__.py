"""A vertical case: a (fictional) press line's fault codes, learned by Gemma 3 270M."""
