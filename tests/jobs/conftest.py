"""The S3 of the pipeline's tests serves those of the jobs too."""

from __future__ import annotations

from tests.pipeline.conftest import bucket, s3_endpoint, s3_server

__all__ = ["bucket", "s3_endpoint", "s3_server"]
