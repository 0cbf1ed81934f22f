-- Run after the load: constraints on the rows, triggers that must not fire during the load, and summaries.
alter table library.document add constraint reply_to_exists foreign key (reply_to) references library.document (id);
alter table billing.usage add constraint usage_is_counted check (units >= 0) not valid;
alter table billing.usage add foreign key (customer_id) references billing.customer (id);
create trigger document_is_audited after insert or update or delete on library.document
  for each statement execute function audit.log_change();
create trigger quiet after insert on library.author for each row execute function audit.log_change();
alter table library.author disable trigger quiet;
create materialized view library.author_summary as
  select author_id, count(*) as documents, sum(score) as score, max(created_at) as latest
  from library.document group by author_id;
create unique index author_summary_key on library.author_summary (author_id);
comment on materialized view library.author_summary is 'refreshed by hand';
grant select on library.author_summary to synapse_reader;

-- one row of every type, and both zeros
insert into library.every_type values (1, -32768, 'NaN', '-Infinity', 'NaN', true, 'infinity', '24:00',
  '23:59:59.999999+14', '-infinity', '4713-01-01 00:00 BC', '-1 year 2 mons -3 days 04:05:06.789', '::1/128',
  '10.0.0.0/8', '08:00:2b:01:02:03', '00000000-0000-0000-0000-000000000000', '{"b":1, "a":1,"b":2}',
  '{"n": 1.10, "s": "\u00e9"}',
  '(1.5,-2)', '(3,4),(1,2)', '((0,0),(1,1),(2,0))', '<(0,0),1e-300>', '10110', '1',
  'fat:1A rat:2,3', 'fat & !rat:ab', '{[1,3),[5,)}', 'FFFFFFFF/FFFFFFFF', 'x', 'a name', '\x00ff00', 'ab',
  'x''y', '-12.34', '(,2026-01-01 00:00+00]', '{{a,NULL},{"NULL","{}"}}',
  array[row('s', null, '', 'CH')::library.postal_address], '$.a[*] ? (@ > 1)', '[(0,0),(1,1)]', '[(0,0),(1,1)]',
  '08:00:2b:01:02:03:04:05', '18446744073709551615', '{a@b}', '[2026-01-01,)');
insert into library.every_type (id, b, c, d) values (2, '-0', '-0', '0.00'), (3, '0', '0', '0');
