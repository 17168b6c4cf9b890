# Penstock as a container: `docker build -t penstock .`, then mount an application at /app and say which it is:
#
#     docker run --rm -v ./examples:/app:ro -e PENSTOCK_APP=greeter.py penstock
#
# compose.yaml runs two of them on Kafka.
FROM python:3.11-slim

COPY . /tmp/penstock
RUN pip install --no-cache-dir --constraint /tmp/penstock/requirements-dev.lock \
        '/tmp/penstock[fast,kafka,objectstore,postgres,protobuf,pydantic]' \
    && rm -r /tmp/penstock \
    && useradd --uid 10001 --create-home --home-dir /var/lib/penstock penstock

USER penstock
WORKDIR /app
ENV PENSTOCK_DIR=/var/lib/penstock/data \
    PYTHONUNBUFFERED=1
VOLUME /var/lib/penstock
EXPOSE 7070

# It answers the signal that `docker stop` sends by stopping in an orderly way, for which it may need `stop_timeout`.
ENTRYPOINT ["penstock"]
CMD ["run"]
