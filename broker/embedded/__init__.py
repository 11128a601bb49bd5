"""Redis and a mock of Kafka for the demo. Servers of Kafka and Triton for tests are in a checkout's deploy/local."""
