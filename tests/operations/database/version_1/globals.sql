--
-- PostgreSQL database cluster dump
--

\restrict tz09HpSAkSAVcvyC9wfNi5j8loRJ70UvA4LSd1ea6sb6himEf616VEf0SfgrYkO

SET default_transaction_read_only = off;

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

--
-- Roles
--

CREATE ROLE postgres;
ALTER ROLE postgres WITH SUPERUSER INHERIT CREATEROLE CREATEDB LOGIN REPLICATION BYPASSRLS;

--
-- User Configurations
--








\unrestrict tz09HpSAkSAVcvyC9wfNi5j8loRJ70UvA4LSd1ea6sb6himEf616VEf0SfgrYkO

--
-- PostgreSQL database cluster dump complete
--

