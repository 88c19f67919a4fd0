-- Whether it was a block that purged the account (`block add --rows purge`), and nothing else: the
-- purge is forgotten when the block is lifted. Of a deleted account, or one that an operator has
-- erased, it is not.
ALTER TABLE rsky_pipeline.repo_floor ADD COLUMN by_block boolean NOT NULL DEFAULT false;
UPDATE rsky_pipeline.repo_floor f SET by_block = true
WHERE f.purged AND EXISTS (
    SELECT FROM rsky_pipeline.block b
    LEFT JOIN rsky_pipeline.blocked_account a ON b.kind = 'host' AND a.host = b.subject
    WHERE b.rows = 'purge' AND f.did = CASE b.kind WHEN 'host' THEN a.did ELSE b.subject END
);
