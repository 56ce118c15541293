CREATE DATABASE shop;
CREATE USER 'app'@'%' IDENTIFIED BY 'the-password';
GRANT ALL ON shop.* TO 'app'@'%';
