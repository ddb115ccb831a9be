"""Stages on many machines, through Dask's ``distributed``; docs/cluster.md tells more.

::

    coordinator   decides what runs, and takes the results: dvc.lock and what git keeps
      │
    workers       finds room for a stage on a worker
      │  job
    machine       in Dask's worker: hands the job to a free slot, and its lines back
      │  job
    slot          a process with a workspace of its own, which runs the stage as a local flow does

DVC's remote carries the data between them. None of these modules imports Prefect.
"""
