"""A page to look at a data set: clips, verdicts, histograms of scores, and buckets.

python -m data_pipelines.browse --data=shards --out=page --config=configs/quickstart.py
"""
