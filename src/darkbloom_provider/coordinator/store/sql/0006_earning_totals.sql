-- What was earned, added up by account, day (UTC), model and machine, so that nobody adds up years.
-- NULL machine identities are written as ''. `$clustered` keeps the rows in the key's own tree.

CREATE TABLE earning_totals (
  account_id TEXT NOT NULL REFERENCES accounts (id),
  day BIGINT NOT NULL,
  model TEXT NOT NULL,
  provider_key TEXT NOT NULL,
  machine_id TEXT NOT NULL,
  amount BIGINT NOT NULL CHECK (amount >= 0),
  jobs BIGINT NOT NULL CHECK (jobs > 0),
  prompt_tokens BIGINT NOT NULL,
  completion_tokens BIGINT NOT NULL,
  first_at BIGINT NOT NULL,
  last_at BIGINT NOT NULL,
  PRIMARY KEY (account_id, day, model, provider_key, machine_id)
) $clustered;
CREATE INDEX earning_totals_by_day ON earning_totals (day);
CREATE INDEX earning_totals_by_provider_key ON earning_totals (provider_key, day);

INSERT INTO earning_totals
SELECT account_id, created_at / 86400000000 * 86400000000, model, provider_key,
  COALESCE(machine_id, ''), CAST(SUM(amount) AS BIGINT), COUNT(*),
  CAST(SUM(prompt_tokens) AS BIGINT), CAST(SUM(completion_tokens) AS BIGINT),
  MIN(created_at), MAX(created_at)
FROM earnings
GROUP BY account_id, created_at / 86400000000, model, provider_key, COALESCE(machine_id, '');

-- The newest rows of one model, which may be rare among the account's others.
CREATE INDEX earnings_by_model ON earnings (account_id, model, created_at);
