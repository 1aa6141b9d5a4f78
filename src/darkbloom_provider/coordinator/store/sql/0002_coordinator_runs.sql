-- Several coordinators may share one database: each refunds the open reservations of the dead only.

CREATE TABLE coordinator_runs (
  id $identity,
  started_at BIGINT NOT NULL
);

-- 0: made before runs were counted, or beside a coordinator.
ALTER TABLE jobs ADD COLUMN run BIGINT NOT NULL DEFAULT 0;
