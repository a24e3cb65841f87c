"""The jobs of a node with what they need: their place on disk, who does them, and who tells of their end."""

from __future__ import annotations

import os
from dataclasses import dataclass

from octonode.api.inference import webhook_body
from octonode.config import Config
from octonode.identity import NodeKey
from octonode.network.clock import wall_clock_ms
from octonode.node.events import Events
from octonode.node.job_table import JobTable
from octonode.state import State
from octonode.tasks.dispatcher import Dispatcher
from octonode.tasks.inference import Performer
from octonode.tasks.jobs import Jobs
from octonode.tasks.webhook_post import post, resolve
from octonode.tasks.webhook_rule import WebhookRule
from octonode.tasks.webhooks import Webhooks


@dataclass(frozen=True, slots=True)
class JobRoom:
    jobs: Jobs
    webhooks: Webhooks


def build_jobs(config: Config, key: NodeKey, state: State, dispatcher: Dispatcher, events: Events) -> JobRoom:
    """Raises ConfigError for hosts of webhooks that are none."""
    rule = WebhookRule(config.jobs.webhook_hosts_allowed)
    jobs = Jobs(
        store=JobTable(state, config.home / "jobs"), perform=Performer(dispatcher.ask), settings=config.jobs, rule=rule,
        now_ms=wall_clock_ms, chance=os.urandom, emit=events.emit,
    )  # fmt: skip
    webhooks = Webhooks(
        jobs, signer=key, rule=rule, resolve=resolve, post=post, render=webhook_body, now_ms=wall_clock_ms
    )
    return JobRoom(jobs, webhooks)
