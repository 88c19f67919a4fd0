-- Reading a materialized view without data is an error: `algo_whats_hot_view` was created so once.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_matviews
        WHERE schemaname = current_schema() AND matviewname = 'algo_whats_hot_view'
            AND NOT ispopulated
    ) THEN
        REFRESH MATERIALIZED VIEW algo_whats_hot_view;
    END IF;
END $$;
