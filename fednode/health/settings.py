"""Settings of engine health: how often, how long, how much, and when an engine counts as up or down."""

from pydantic import BaseModel, ConfigDict, Field


class HealthSettings(BaseModel):
    """Every figure with its reason; `_s` are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scrape_s: float = Field(default=0.5, ge=0.05, le=60)  # a local figure is at most this plus one scrape old
    models_s: float = Field(default=5.0, ge=0.05, le=3600)  # models change by hand; also asked after every recovery
    timeout_s: float = Field(default=2.0, gt=0, le=60)  # a busy vLLM takes 40 ms; two seconds is trouble
    body_bytes_max: int = Field(default=2 * 1024 * 1024, ge=1024)  # vLLM's page is 0.1 MB, times 16 engines
    retry_metrics_s: float = Field(default=10.0, ge=0.05, le=3600)  # metrics that are switched off are asked for rarely
    bad_scrapes: int = Field(default=3, ge=1, le=100)  # 1.5 s: under the 3 s in which a dead box must be avoided
    good_scrapes: int = Field(default=2, ge=1, le=100)  # one good answer may come from a server that is still starting
    bad_requests: int = Field(default=3, ge=1, le=100)  # in a row: one may be the request's fault, three hardly
    trial_s: float = Field(default=5.0, gt=0, le=3600)  # first wait before one request may try again; it doubles ...
    trial_max_s: float = Field(default=60.0, gt=0, le=3600)  # ... up to here
    trial_limit_s: float = Field(default=120.0, gt=0, le=3600)  # a trial that nobody reports on ends here
    busy_memory_s: float = Field(default=10.0, gt=0, le=3600)  # rates forget over this much *busy* time
    arrival_memory_s: float = Field(default=10.0, gt=0, le=3600)  # arrivals forget over this much wall time
