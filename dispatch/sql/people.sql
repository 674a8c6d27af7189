-- name: accounts
-- What decides whether tokens still count, for many users at once. Unknown ids have no row.
SELECT id, role, token_epoch, disabled_at IS NOT NULL AS disabled
  FROM users
 WHERE id = ANY ($1::uuid[]);
