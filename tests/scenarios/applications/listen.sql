LISTEN news;
\! touch DIRECTORY/listening
\! until [ -e DIRECTORY/notified ]; do sleep 0.05; done
SELECT 'heard';
