"""Hydra launchers and a sweeper: a light module with the configuration, a heavy one with an underscore, for each.

    local.py        one fresh process a job on this machine        -> _local.py
    _config.py      the keys under hydra.launcher
    _job.py         one job of a sweep, and how it travels to a process and back; _compose.py: many in little time
    _child.py       what a job's process runs
    _process.py     a job's process as seen from the launcher: its output, its end
    _summary.py     the table at the end of a sweep

    _cluster.py     the contract between the driver and a system of other machines
    _launcher.py    the class behind every launcher to other machines   -> _remote.py: a sweep as plain data, and back
    _driver.py      submits, watches, retries and ends jobs; _track.py: one attempt; _ledger.py, _log.py
    _node.py        what runs on a node; _files.py: names of what it leaves; _return.py: what its task returned;
                    _handback.py: files inside its log
    _book.py        sweep.json and MLflow on the submitting side; _chosen.py: refuses launchers in swept configurations

    slurm.py        each job a job of Slurm                        -> _slurm.py, _slurm_preflight.py, _slurm_config.py;
                    _slurm_jobs.py: what becomes of a job, for torchx.py too
    kubernetes.py   each job a Job of Kubernetes                   -> _kubernetes.py
    _kubernetes_*   its keys (config), manifests (manifest, gke for GPUDirect-TCPX, overlay for the user's patch), what
                    its objects say (state), logs (log), checks beforehand (preflight, room), their end (removal), the
                    API itself (api)

    optuna_sweeper.py   a search over a sweep's settings       -> _optuna.py
    _optuna_*       its keys (config), what it draws from (space), what it makes of a run (outcome), its trials (study)

    skypilot.py     each job a SkyPilot cluster                    -> _skypilot.py, _skypilot_task.py: what it is to run
    _sky_client.py  speaks with SkyPilot, which has an environment of its own; _sky_bridge.py: the other end, there
    torchx.py       each job a TorchX application                  -> _torchx.py, _torchx_app.py, _slurm_jobs.py
    ray.py          each job a job of a Ray cluster                -> _ray.py, _ray_nodes.py

``hydra_plugins`` itself is a namespace package and must have no ``__init__.py``. Hydra imports every module here whose
name has no leading underscore whenever it composes a configuration, so those import nothing heavy.
"""
