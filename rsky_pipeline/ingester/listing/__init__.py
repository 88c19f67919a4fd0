"""Lists of repos: all repos of a relay (`enumeration`), and repair of its gaps (`gap_repair`).

In: pages of `listRepos` and `listReposByCollection`, gaps that the live stream noted. Out: jobs in
`repo_backfill` and `repo_backfill_high` with the cursor of the page, account events, unlistable
ranges, rows of `rsky_pipeline.gap`.

Read `enumeration` first; the paging itself is `network.listing`. One task for each listing and one
for gap repair; stores are called in the threads of their links. It fetches no repo, and must not
depend on how commits are decided: of their states it only reads rev and activity.
"""
