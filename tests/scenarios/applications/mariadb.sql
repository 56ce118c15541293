CREATE TABLE shop.lines (id INT AUTO_INCREMENT PRIMARY KEY, line VARCHAR(200));
LOAD DATA LOCAL INFILE 'DIRECTORY/lines' INTO TABLE shop.lines (line);
SELECT COUNT(*) FROM shop.lines;
CREATE TABLE shop.blobs (name VARCHAR(20), body LONGBLOB);
PREPARE put FROM 'INSERT INTO shop.blobs VALUES (?, ?)';
SET @name = 'picture', @body = x'PICTURE';
EXECUTE put USING @name, @body;
SELECT SHA2(body, 256) FROM shop.blobs;
