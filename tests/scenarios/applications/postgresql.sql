CREATE TABLE lines (id serial PRIMARY KEY, line text);
\copy lines (line) from 'DIRECTORY/lines'
SELECT count(*) FROM lines;
\copy (SELECT line FROM lines ORDER BY id) to 'DIRECTORY/lines.back'
PREPARE find (int) AS SELECT line FROM lines WHERE id = $1;
EXECUTE find (1);
